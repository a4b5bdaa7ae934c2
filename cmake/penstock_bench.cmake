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

# bench/servers/*.cpp, bench/timers/*.cpp -> bin/bench/<name>: programs that use the library.
file(GLOB bench_servers CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bench/servers/*.cpp ${PROJECT_SOURCE_DIR}/bench/timers/*.cpp)
foreach(source IN LISTS bench_servers)
  cmake_path(GET source STEM name)
  add_executable(penstock_bench_${name} ${source})
  target_link_libraries(penstock_bench_${name} PRIVATE penstock::penstock)
  penstock_compile_options(penstock_bench_${name})
  set_target_properties(penstock_bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/bench)
endforeach()

# bench/designs/*.cpp -> bin/bench/designs: one program, ways to send from other threads.
file(GLOB bench_designs CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/designs/*.cpp)
add_executable(penstock_bench_designs ${bench_designs})
target_link_libraries(penstock_bench_designs PRIVATE penstock::penstock Threads::Threads)
penstock_compile_options(penstock_bench_designs)
set_target_properties(penstock_bench_designs PROPERTIES
  OUTPUT_NAME designs RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/bench)

# bench/peers/<library>_*.{c,cpp} -> bin/bench/<name>: the same servers on other libraries. One
# whose library is not installed is left out; bench/run.py then leaves it out too.
find_package(PkgConfig QUIET)
function(penstock_find_peer prefix module header package)
  if(PkgConfig_FOUND AND module)
    pkg_check_modules(peer_${prefix} QUIET IMPORTED_TARGET ${module})
  endif()
  if(TARGET PkgConfig::peer_${prefix})
    set(penstock_peer_${prefix} PkgConfig::peer_${prefix} PARENT_SCOPE)
    return()
  endif()
  # Without pkg-config, or for a library of headers only (module is then empty).
  find_path(penstock_peer_${prefix}_include ${header})
  set(links "")
  foreach(library IN LISTS ARGN)
    find_library(penstock_peer_${prefix}_${library} ${library})
    list(APPEND links ${penstock_peer_${prefix}_${library}})
  endforeach()
  if(NOT penstock_peer_${prefix}_include OR "${links}" MATCHES "-NOTFOUND")
    message(STATUS "bench: ${package} is not installed, so its servers are left out of the comparison")
    return()
  endif()
  add_library(penstock_peer_${prefix} INTERFACE)
  target_include_directories(penstock_peer_${prefix} SYSTEM INTERFACE
    ${penstock_peer_${prefix}_include})
  target_link_libraries(penstock_peer_${prefix} INTERFACE ${links})
  set(penstock_peer_${prefix} penstock_peer_${prefix} PARENT_SCOPE)
endfunction()
penstock_find_peer(libevent libevent_core event2/bufferevent.h libevent-dev event_core)
penstock_find_peer(uv libuv uv.h libuv1-dev uv)
penstock_find_peer(asio "" asio.hpp libasio-dev)

file(GLOB bench_peers CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bench/peers/*.c ${PROJECT_SOURCE_DIR}/bench/peers/*.cpp)
foreach(source IN LISTS bench_peers)
  cmake_path(GET source STEM name)
  string(REGEX REPLACE "_.*" "" prefix ${name})
  if(NOT penstock_peer_${prefix})
    continue()
  endif()
  add_executable(penstock_bench_${name} ${source})
  target_link_libraries(penstock_bench_${name} PRIVATE ${penstock_peer_${prefix}} Threads::Threads)
  # Optimised and hardened like Penstock itself.
  penstock_compile_options(penstock_bench_${name})
  set_target_properties(penstock_bench_${name} PROPERTIES
    C_STANDARD 17 C_STANDARD_REQUIRED ON C_EXTENSIONS ON
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/bench)
endforeach()
