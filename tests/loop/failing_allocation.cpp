// Replaces operator new in this executable, so that a test can make one chosen allocation fail. The
// replacement must be a part of the executable itself: in a library it would replace it for every test.

#include "bytes/failing_allocation.cpp"  // NOLINT(bugprone-suspicious-include)
