#include "app/command.h"
namespace penstock::app { void add_trace(CLI::App& app, Action& action) { (void)app; (void)action; } }
