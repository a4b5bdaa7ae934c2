# penstock_compile_options(target): warnings and hardening for one of our own targets.
# Sanitizers and coverage are set for the whole build, because they must agree everywhere.

include_guard()

set(penstock_warnings_common -Wall -Wextra -Wshadow -Wcast-qual -Wcast-align -Wformat=2
  -Wimplicit-fallthrough -Wundef -Wvla -Wpointer-arith)
# A designated initialiser that leaves members at their defaults is how options are passed.
list(APPEND penstock_warnings_common -Wno-missing-field-initializers)
set(penstock_warnings_cxx -Wpedantic -Wconversion -Wsign-conversion -Wold-style-cast
  -Wnon-virtual-dtor -Woverloaded-virtual -Wextra-semi -Wdouble-promotion -Wunused
  -Wredundant-decls -Wmissing-declarations)
# -Wnull-dereference is left out: g++ 12 reports it inside the standard library when optimising.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND penstock_warnings_cxx -Wduplicated-cond -Wduplicated-branches -Wlogical-op
    -Wsuggest-override -Wcomma-subscript)
elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  list(APPEND penstock_warnings_cxx -Winconsistent-missing-destructor-override
    -Wimplicit-int-float-conversion -Wshadow-field -Wthread-safety)
endif()

if(PENSTOCK_SANITIZE AND PENSTOCK_HARDENING)
  message(FATAL_ERROR "PENSTOCK_HARDENING and PENSTOCK_SANITIZE exclude each other: "
    "_FORTIFY_SOURCE hides calls from the sanitizers")
endif()
# What a program outside the build needs too when it links the library: tests/install builds some.
set(penstock_instrument_flags "")
if(PENSTOCK_SANITIZE)
  set(flags -fno-omit-frame-pointer -fno-optimize-sibling-calls)
  set(link_flags "")
  if(PENSTOCK_SANITIZE STREQUAL "address")
    # vptr: its check opens a pipe, and finds fault where a test has used up all descriptors.
    list(APPEND flags -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all)
    set(link_flags -fsanitize=address,undefined)
  elseif(PENSTOCK_SANITIZE STREQUAL "thread")
    list(APPEND flags -fsanitize=thread)
    set(link_flags -fsanitize=thread)
  elseif(PENSTOCK_SANITIZE STREQUAL "fuzzer")
    if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
      message(FATAL_ERROR "PENSTOCK_SANITIZE=fuzzer needs clang: use the preset fuzz")
    endif()
    list(APPEND flags -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
    set(link_flags -fsanitize=address,undefined)
  else()
    message(FATAL_ERROR "PENSTOCK_SANITIZE is '${PENSTOCK_SANITIZE}'; "
      "known are address, thread and fuzzer")
  endif()
  add_compile_options(${flags})
  add_link_options(${link_flags})
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
  list(APPEND penstock_instrument_flags ${link_flags} ${flags})
endif()
if(PENSTOCK_COVERAGE)
  list(APPEND penstock_instrument_flags --coverage)
  # Threads count too; without atomic counters some come out negative, which gcovr refuses.
  add_compile_options(--coverage -fprofile-update=atomic)
  add_link_options(--coverage)
endif()

set(penstock_ipo OFF)
if(PENSTOCK_IPO)
  include(CheckIPOSupported)
  check_ipo_supported(RESULT penstock_ipo OUTPUT ipo_output LANGUAGES C CXX)
  if(NOT penstock_ipo)
    message(STATUS "Interprocedural optimisation is not available with this compiler: left out")
  endif()
endif()

function(penstock_compile_options target)
  target_compile_options(${target} PRIVATE ${penstock_warnings_common}
    "$<$<COMPILE_LANGUAGE:CXX>:${penstock_warnings_cxx}>")
  if(PENSTOCK_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(PENSTOCK_HARDENING)
    # Fortification is an optimiser's work: at -O0 glibc only warns about it.
    target_compile_options(${target} PRIVATE -fstack-protector-strong
      -ftrivial-auto-var-init=zero
      "$<$<NOT:$<CONFIG:Debug>>:SHELL:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3>")
    target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:_GLIBCXX_ASSERTIONS>)
    target_link_options(${target} PRIVATE -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)
  endif()
  if(penstock_ipo)
    get_target_property(type ${target} TYPE)
    # An installed archive must also serve another compiler: g++ puts machine code beside its own
    # form, which cmake --install takes out again; other compilers do without IPO here.
    if(NOT type STREQUAL "STATIC_LIBRARY" OR CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      set_property(TARGET ${target} PROPERTY INTERPROCEDURAL_OPTIMIZATION ON)
    endif()
    if(type STREQUAL "STATIC_LIBRARY" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE -ffat-lto-objects)
    endif()
  endif()
endfunction()
