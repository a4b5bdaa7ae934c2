// Replaces operator new in this executable, so that a test can make one chosen allocation fail.

#include "bytes/failing_allocation.cpp"
