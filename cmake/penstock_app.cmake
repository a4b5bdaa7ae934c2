# The penstock command: src/app/*.cpp -> bin/penstock.

find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)

# Everything but main() is a library of its own, so that tests/app can link it.
file(GLOB penstock_app_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/app/*.cpp)
list(REMOVE_ITEM penstock_app_sources ${PROJECT_SOURCE_DIR}/src/app/main.cpp)
add_library(penstock_app_parts STATIC ${penstock_app_sources})
target_include_directories(penstock_app_parts PUBLIC ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock_app_parts PUBLIC
  penstock::penstock penstock::sim CLI11::CLI11 fmt::fmt spdlog::spdlog)
penstock_compile_options(penstock_app_parts)

add_executable(penstock_app ${PROJECT_SOURCE_DIR}/src/app/main.cpp)
target_compile_definitions(penstock_app PRIVATE PENSTOCK_VERSION="${PROJECT_VERSION}")
target_link_libraries(penstock_app PRIVATE penstock_app_parts)
penstock_compile_options(penstock_app)
set_target_properties(penstock_app PROPERTIES
  OUTPUT_NAME penstock RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
