# cmake --install: library, headers, command, and a package for find_package(penstock).

include(CMakePackageConfigHelpers)

set(destination ${CMAKE_INSTALL_LIBDIR}/cmake/penstock)
install(TARGETS penstock penstock_sim EXPORT penstock_targets)
install(DIRECTORY include/penstock DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
install(EXPORT penstock_targets NAMESPACE penstock:: DESTINATION ${destination})
if(TARGET penstock_app)
  install(TARGETS penstock_app)
endif()

file(CONFIGURE OUTPUT penstock-config.cmake @ONLY CONTENT
"include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(\"\${CMAKE_CURRENT_LIST_DIR}/penstock_targets.cmake\")
")
write_basic_package_version_file(${PROJECT_BINARY_DIR}/penstock-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/penstock-config.cmake
  ${PROJECT_BINARY_DIR}/penstock-config-version.cmake DESTINATION ${destination})
