# bench/limit/*.c and bench/load/*.c -> bin/bench/<name>: standalone C programs that do not use the
# library. What the machine can do at most, and what loads a server.

file(GLOB bench_sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bench/limit/*.c ${PROJECT_SOURCE_DIR}/bench/load/*.c)
foreach(source IN LISTS bench_sources)
  cmake_path(GET source STEM name)
  if(TARGET penstock_bench_${name})
    message(FATAL_ERROR "bench: two programs are called ${name}; rename one")
  endif()
  add_executable(penstock_bench_${name} ${source})
  # GNU C17: the programs ask for _GNU_SOURCE themselves where they need it.
  set_target_properties(penstock_bench_${name} PROPERTIES
    C_STANDARD 17 C_STANDARD_REQUIRED ON C_EXTENSIONS ON
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/bench)
  target_compile_options(penstock_bench_${name} PRIVATE -O2 ${penstock_warnings_common})
  if(PENSTOCK_WERROR)
    target_compile_options(penstock_bench_${name} PRIVATE -Werror)
  endif()
  target_link_options(penstock_bench_${name} PRIVATE -Wl,--as-needed)
  target_link_libraries(penstock_bench_${name} PRIVATE Threads::Threads uring m)
endforeach()

# bench/servers/*.cpp -> bin/bench/<name>: programs that use the library.
file(GLOB bench_servers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/servers/*.cpp)
foreach(source IN LISTS bench_servers)
  cmake_path(GET source STEM name)
  add_executable(penstock_bench_${name} ${source})
  target_link_libraries(penstock_bench_${name} PRIVATE penstock::penstock)
  penstock_compile_options(penstock_bench_${name})
  set_target_properties(penstock_bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/bench)
endforeach()
