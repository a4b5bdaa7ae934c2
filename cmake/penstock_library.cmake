# The library (src/<floor>/*.cpp) and the simulation beside it (src/sim/*.cpp).

find_package(Threads REQUIRED)
find_path(PENSTOCK_URING_INCLUDE liburing.h)
find_library(PENSTOCK_URING_LIBRARY uring)
if(NOT PENSTOCK_URING_INCLUDE OR NOT PENSTOCK_URING_LIBRARY)
  message(FATAL_ERROR "liburing was not found: apt-get install liburing-dev")
endif()

# Checksums of frames, by whatever instructions the processor has. Debian ships it shared only.
find_path(PENSTOCK_ISAL_INCLUDE isa-l/crc.h)
find_library(PENSTOCK_ISAL_LIBRARY isal)
if(NOT PENSTOCK_ISAL_INCLUDE OR NOT PENSTOCK_ISAL_LIBRARY)
  message(FATAL_ERROR "ISA-L was not found: apt-get install libisal-dev")
endif()

file(GLOB penstock_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*/*.cpp)
set(penstock_sim_sources ${penstock_sources})
list(FILTER penstock_sources EXCLUDE REGEX "/src/(sim|app)/[^/]*$")
list(FILTER penstock_sim_sources INCLUDE REGEX "/src/sim/[^/]*$")
file(GLOB_RECURSE penstock_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/penstock/*.h)

# A library cannot be empty, a young floor can.
set(placeholder ${PROJECT_BINARY_DIR}/generated/empty.cpp)
if(NOT EXISTS ${placeholder})
  file(WRITE ${placeholder} "// This file is empty on purpose.\n")
endif()
foreach(list penstock_sources penstock_sim_sources)
  if(NOT ${list})
    set(${list} ${placeholder})
  endif()
endforeach()

# One compilation for both forms: the archive's objects are position-independent, and the shared
# library is linked from them. penstock::penstock is the archive, or with BUILD_SHARED_LIBS the
# shared library.
add_library(penstock STATIC ${penstock_sources})
add_library(penstock::static ALIAS penstock)
target_compile_features(penstock PUBLIC cxx_std_23)
target_include_directories(penstock
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock PUBLIC Threads::Threads PRIVATE uring isal)
set_target_properties(penstock PROPERTIES EXPORT_NAME static)
penstock_compile_options(penstock)

if(PENSTOCK_SHARED)
  add_library(penstock_shared SHARED $<TARGET_OBJECTS:penstock>)
  add_library(penstock::shared ALIAS penstock_shared)
  target_compile_features(penstock_shared PUBLIC cxx_std_23)
  target_include_directories(penstock_shared PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(penstock_shared PUBLIC Threads::Threads PRIVATE uring isal)
  penstock_compile_options(penstock_shared)
  target_link_options(penstock_shared PRIVATE -Wl,--as-needed)
  if(NOT PENSTOCK_SANITIZE)
    # A sanitizer's own symbols may come with the program.
    target_link_options(penstock_shared PRIVATE -Wl,-z,defs)
  endif()
  if(penstock_ipo)
    # Every symbol is exported and may be interposed, so there is nothing to inline across files.
    set_property(TARGET penstock_shared PROPERTY INTERPROCEDURAL_OPTIMIZATION OFF)
    target_link_options(penstock_shared PRIVATE -fno-lto)
  endif()
  # Before 1.0 a minor version may change the ABI, as it may change the API.
  set(soversion ${PROJECT_VERSION_MAJOR})
  if(soversion EQUAL 0)
    set(soversion ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  endif()
  set_target_properties(penstock_shared PROPERTIES OUTPUT_NAME penstock EXPORT_NAME shared
    LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION ${soversion})
endif()

add_library(penstock_chosen INTERFACE)
add_library(penstock::penstock ALIAS penstock_chosen)
set_target_properties(penstock_chosen PROPERTIES EXPORT_NAME penstock)
if(BUILD_SHARED_LIBS AND PENSTOCK_SHARED)
  target_link_libraries(penstock_chosen INTERFACE penstock_shared)
else()
  target_link_libraries(penstock_chosen INTERFACE penstock)
endif()

add_library(penstock_sim STATIC ${penstock_sim_sources})
add_library(penstock::sim ALIAS penstock_sim)
set_target_properties(penstock_sim PROPERTIES EXPORT_NAME sim)
target_include_directories(penstock_sim PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock_sim PUBLIC penstock_chosen)
penstock_compile_options(penstock_sim)
