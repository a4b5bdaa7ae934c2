# The library (src/<floor>/*.cpp) and the simulation beside it (src/sim/*.cpp).

find_package(Threads REQUIRED)
find_path(PENSTOCK_URING_INCLUDE liburing.h)
find_library(PENSTOCK_URING_LIBRARY uring)
if(NOT PENSTOCK_URING_INCLUDE OR NOT PENSTOCK_URING_LIBRARY)
  message(FATAL_ERROR "liburing was not found: apt-get install liburing-dev")
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

add_library(penstock ${penstock_sources})
add_library(penstock::penstock ALIAS penstock)
target_compile_features(penstock PUBLIC cxx_std_23)
target_include_directories(penstock
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock PUBLIC Threads::Threads PRIVATE uring)
set_target_properties(penstock PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
penstock_compile_options(penstock)

add_library(penstock_sim STATIC ${penstock_sim_sources})
add_library(penstock::sim ALIAS penstock_sim)
set_target_properties(penstock_sim PROPERTIES EXPORT_NAME sim)
target_include_directories(penstock_sim PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock_sim PUBLIC penstock)
penstock_compile_options(penstock_sim)
