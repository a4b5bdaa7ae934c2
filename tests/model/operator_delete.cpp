// Relacy replaces operator new and delete, so that memory is checked too, but not this one.

#include <cstddef>

#include "model/model_std.h"

void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete[](memory); }
