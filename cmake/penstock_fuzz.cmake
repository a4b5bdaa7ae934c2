# fuzz/*_fuzz.cpp -> bin/fuzz/<name>, a libFuzzer program each (preset fuzz); fuzz/corpus/<name>/ are
# its first inputs. They share tests/support/frame_feed.h with the tests.

file(GLOB fuzz_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/fuzz/*_fuzz.cpp)
foreach(source IN LISTS fuzz_sources)
  cmake_path(GET source STEM name)
  add_executable(penstock_${name} ${source})
  target_include_directories(penstock_${name} PRIVATE
    ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(penstock_${name} PRIVATE penstock::penstock penstock::sim)
  target_link_options(penstock_${name} PRIVATE -fsanitize=fuzzer)
  penstock_compile_options(penstock_${name})
  target_compile_options(penstock_${name} PRIVATE -Wno-missing-declarations)
  set_target_properties(penstock_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/fuzz)
endforeach()
