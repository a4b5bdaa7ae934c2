# cmake --install: the headers, the library static and shared, the simulation, the command, and how
# others find them: find_package(penstock) and pkg-config. All of it may be moved afterwards.

include(CMakePackageConfigHelpers)

set(targets penstock penstock_chosen penstock_sim)
if(PENSTOCK_SHARED)
  list(APPEND targets penstock_shared)
endif()
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/penstock)
install(TARGETS ${targets} EXPORT penstock_targets)
install(EXPORT penstock_targets NAMESPACE penstock:: DESTINATION ${package})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/penstock DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
if(TARGET penstock_app)
  install(TARGETS penstock_app)
  if(BUILD_SHARED_LIBS AND PENSTOCK_SHARED)
    file(RELATIVE_PATH to_library
      ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
    set_property(TARGET penstock_app PROPERTY INSTALL_RPATH "\$ORIGIN/${to_library}")
  endif()
endif()

# The archives carry machine code and, with IPO, the compiler's own form of it as well. Only this
# very compiler can read the latter, and another one stumbles over it: the installed archives go
# without, as distributions ship theirs.
if(penstock_ipo)
  foreach(target penstock penstock_sim)
    set(archive "${CMAKE_INSTALL_LIBDIR}/$<TARGET_FILE_NAME:${target}>")
    cmake_path(ABSOLUTE_PATH archive BASE_DIRECTORY "\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}")
    install(CODE "execute_process(COMMAND_ERROR_IS_FATAL ANY COMMAND ${CMAKE_OBJCOPY}
  --wildcard --remove-section=.gnu.lto_* --remove-section=.gnu.debuglto_* --strip-symbol=__gnu_lto_*
  \"${archive}\")")
  endforeach()
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/penstock-config.cmake.in
  ${PROJECT_BINARY_DIR}/penstock-config.cmake INSTALL_DESTINATION ${package}
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/penstock-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/penstock-config.cmake
  ${PROJECT_BINARY_DIR}/penstock-config-version.cmake DESTINATION ${package})

# Paths in the .pc files are relative to where these are found, unless told to be absolute.
set(pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  file(RELATIVE_PATH up /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
  set(pc_prefix "\${pcfiledir}/${up}")
  string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
endif()
set(pc_libdir "\${prefix}")
cmake_path(APPEND pc_libdir "${CMAKE_INSTALL_LIBDIR}")
set(pc_includedir "\${prefix}")
cmake_path(APPEND pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
foreach(name penstock penstock-sim)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
