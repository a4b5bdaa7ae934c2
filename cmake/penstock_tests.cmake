# Tests.
#   tests/<folder>/*.cpp        -> penstock_<folder>_test, one ctest test per GoogleTest test
#   tests/support/*             -> a support library that every test executable links
#   tests/model/*.cpp           -> penstock_model_test, which has its own atomics and links no library
#   tests/clients/*_test.py     -> python3 unittest against the built command ($PENSTOCK)
#   tests/install/*_test.py     -> python3 unittest that installs the build ($PENSTOCK_BUILD)
#   tests/<other>/*_test.py     -> python3 unittest
# and three checks of the sources: floors, kernel seam, headers that stand alone.

include(GoogleTest)
find_package(GTest REQUIRED)
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)
find_path(PENSTOCK_RAPIDCHECK_INCLUDE rapidcheck.h)
find_library(PENSTOCK_RAPIDCHECK_LIBRARY rapidcheck)
if(NOT PENSTOCK_RAPIDCHECK_INCLUDE OR NOT PENSTOCK_RAPIDCHECK_LIBRARY)
  message(FATAL_ERROR "RapidCheck was not found: apt-get install librapidcheck-dev")
endif()

set(penstock_test_environment
  "ASAN_OPTIONS=detect_stack_use_after_return=1:check_initialization_order=1:strict_string_checks=1"
  "UBSAN_OPTIONS=print_stacktrace=1"
  "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1")

# What every test executable links.
file(GLOB support_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/support/*.cpp)
if(support_sources)
  add_library(penstock_test_support STATIC ${support_sources})
  set(scope PUBLIC)
  penstock_compile_options(penstock_test_support)
else()
  add_library(penstock_test_support INTERFACE)
  set(scope INTERFACE)
endif()
target_include_directories(penstock_test_support ${scope}
  ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/src)
target_include_directories(penstock_test_support SYSTEM ${scope} ${PENSTOCK_RAPIDCHECK_INCLUDE})
target_link_libraries(penstock_test_support ${scope}
  penstock::penstock penstock::sim GTest::gmock GTest::gtest ${PENSTOCK_RAPIDCHECK_LIBRARY})

file(GLOB test_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*/*.cpp)
list(FILTER test_sources EXCLUDE REGEX "/tests/(support|model|clients|install|tools)/[^/]*$")
set(test_folders "")
foreach(source IN LISTS test_sources)
  cmake_path(GET source PARENT_PATH folder)
  list(APPEND test_folders ${folder})
endforeach()
list(REMOVE_DUPLICATES test_folders)

foreach(folder IN LISTS test_folders)
  cmake_path(GET folder FILENAME name)
  set(target penstock_${name}_test)
  if(name STREQUAL "app" AND NOT TARGET penstock_app_parts)
    continue()
  endif()
  set(sources ${test_sources})
  list(FILTER sources INCLUDE REGEX "/tests/${name}/[^/]*$")
  add_executable(${target} ${sources})
  target_link_libraries(${target} PRIVATE penstock_test_support GTest::gtest_main)
  if(name STREQUAL "app")
    target_link_libraries(${target} PRIVATE penstock_app_parts)
  endif()
  penstock_compile_options(${target})
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
  set(timeout 60)
  if(name STREQUAL "stress")
    set(timeout 900)  # `make soak` and `make tsan` raise their numbers
  endif()
  gtest_discover_tests(${target} TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT ${timeout} LABELS ${name} ENVIRONMENT "${penstock_test_environment}")
endforeach()

# Under a model checker, whose threads are no threads: without sanitizers, and optimised, because it
# runs millions of executions. It compiles the sources that it checks itself, with its own atomics.
find_path(PENSTOCK_RELACY_INCLUDE relacy/relacy.hpp)
if(NOT PENSTOCK_RELACY_INCLUDE)
  message(FATAL_ERROR "Relacy was not found: apt-get install relacy-dev")
endif()
file(GLOB model_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/model/*.cpp)
add_executable(penstock_model_test ${model_sources} ${PROJECT_SOURCE_DIR}/src/base/assert.cpp
  ${PROJECT_SOURCE_DIR}/src/base/log.cpp ${PROJECT_SOURCE_DIR}/src/base/result.cpp)
target_include_directories(penstock_model_test PRIVATE
  ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
target_include_directories(penstock_model_test SYSTEM PRIVATE ${PENSTOCK_RELACY_INCLUDE})
target_link_libraries(penstock_model_test PRIVATE GTest::gmock GTest::gtest GTest::gtest_main)
penstock_compile_options(penstock_model_test)
target_compile_options(penstock_model_test PRIVATE -O2 -fno-sanitize=all)
target_link_options(penstock_model_test PRIVATE -fno-sanitize=all)
set_target_properties(penstock_model_test PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF
  RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
gtest_discover_tests(penstock_model_test TEST_PREFIX "model." DISCOVERY_MODE PRE_TEST
  DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 120 LABELS model)

file(GLOB python_tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*/*_test.py)
foreach(source IN LISTS python_tests)
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET folder FILENAME label)
  cmake_path(GET source FILENAME file)
  cmake_path(GET source STEM stem)
  set(timeout 300)
  set(environment ${penstock_test_environment} PYTHONDONTWRITEBYTECODE=1 "CXX=${CMAKE_CXX_COMPILER}")
  if(label STREQUAL "clients")
    if(NOT TARGET penstock_app)
      continue()
    endif()
    list(APPEND environment "PENSTOCK=$<TARGET_FILE:penstock_app>")
  elseif(label STREQUAL "install")
    if(NOT PENSTOCK_INSTALL OR NOT PENSTOCK_SHARED)
      continue()
    endif()
    set(timeout 600)  # it compiles: 15 s, and a multiple of it beside other builds
    list(JOIN penstock_instrument_flags " " flags)
    string(STRIP "${CMAKE_CXX_FLAGS} ${flags}" flags)
    list(APPEND environment "PENSTOCK_BUILD=${PROJECT_BINARY_DIR}" "CMAKE=${CMAKE_COMMAND}"
      "CMAKE_GENERATOR=${CMAKE_GENERATOR}" "CXXFLAGS=${flags}" "PENSTOCK_VERSION=${PROJECT_VERSION}")
  endif()
  add_test(NAME ${label}.${stem}
    COMMAND ${Python3_EXECUTABLE} -m unittest discover -v -s ${folder} -t ${folder} -p ${file})
  # unittest calls a file without a single test a success; it is a mistake.
  set_tests_properties(${label}.${stem} PROPERTIES TIMEOUT ${timeout} LABELS ${label}
    ENVIRONMENT "${environment}" FAIL_REGULAR_EXPRESSION "Ran 0 tests")
  if("${label}.${stem}" MATCHES "^(clients.readme_test|install.install_test)$")
    # Where a network of one's own is not allowed, README's example has its one port to itself.
    set_tests_properties(${label}.${stem} PROPERTIES RESOURCE_LOCK readme_port)
  endif()
endforeach()

# Every public header compiles on its own, and twice.
set(header_sources "")
foreach(header IN LISTS penstock_headers)
  cmake_path(RELATIVE_PATH header BASE_DIRECTORY ${PROJECT_SOURCE_DIR}/include OUTPUT_VARIABLE name)
  string(REGEX REPLACE "\\.h$" ".cpp" source ${name})
  set(source ${PROJECT_BINARY_DIR}/generated/header_check/${source})
  file(CONFIGURE OUTPUT ${source} CONTENT "#include <${name}>\n#include <${name}>\n" @ONLY)
  list(APPEND header_sources ${source})
endforeach()
if(header_sources)
  add_library(penstock_header_check OBJECT ${header_sources})
  target_link_libraries(penstock_header_check PRIVATE penstock::penstock penstock::sim)
  penstock_compile_options(penstock_header_check)
  target_compile_options(penstock_header_check PRIVATE -g0)
endif()

# Includes go down, system calls stay behind the kernel seam.
add_test(NAME sources.floors
  COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_floors.py ${PROJECT_SOURCE_DIR})
set_tests_properties(sources.floors PROPERTIES TIMEOUT 60 LABELS sources)

set(seam_targets penstock penstock_sim)
if(TARGET penstock_app)
  list(APPEND seam_targets penstock_app penstock_app_parts)
endif()
set(seam_objects "")
foreach(target IN LISTS seam_targets)
  string(APPEND seam_objects "$<JOIN:$<TARGET_OBJECTS:${target}>,\n>\n")
endforeach()
file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/kernel_seam_objects.txt CONTENT "${seam_objects}")
if(penstock_ipo)
  message(STATUS "The kernel seam is not checked here: nm cannot see through IPO objects")
else()
  add_test(NAME sources.kernel_seam
    COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/check_kernel_seam.py
      --nm ${CMAKE_NM} --source ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
  set_tests_properties(sources.kernel_seam PROPERTIES TIMEOUT 60 LABELS sources)
endif()
