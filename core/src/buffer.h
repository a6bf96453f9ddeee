// Memory that kernels work in, aligned to a cache line.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace quanto {

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete (p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<void, AlignedDelete>;

inline Buffer allocate(std::size_t bytes) {
  return Buffer(bytes == 0 ? nullptr : ::operator new (bytes, std::align_val_t{64}));
}

/// Per-thread memory that grows to the largest request: a decode step calls hundreds of times a second.
inline void* thread_buffer(std::size_t bytes) {
  thread_local Buffer buffer;
  thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    buffer.reset();
    buffer = allocate(bytes);
    capacity = bytes;
  }
  return bytes == 0 ? nullptr : buffer.get();
}

}  // namespace quanto
