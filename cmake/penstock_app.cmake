# The penstock command: src/app/*.cpp -> bin/penstock.

find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)

file(GLOB penstock_app_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/app/*.cpp)
add_executable(penstock_app ${penstock_app_sources})
target_include_directories(penstock_app PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_compile_definitions(penstock_app PRIVATE PENSTOCK_VERSION="${PROJECT_VERSION}")
target_link_libraries(penstock_app PRIVATE
  penstock::penstock penstock::sim CLI11::CLI11 fmt::fmt spdlog::spdlog)
penstock_compile_options(penstock_app)
set_target_properties(penstock_app PROPERTIES
  OUTPUT_NAME penstock RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
