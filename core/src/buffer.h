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

#if defined(__SANITIZE_ADDRESS__)
#define QUANTO_EXACT_BUFFERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QUANTO_EXACT_BUFFERS 1
#endif
#endif

/// Memory that grows to the largest request: a decode step calls hundreds of times a second. AddressSanitizer gets
/// blocks of the size of each request, whose ends it knows.
class GrowingBuffer {
 public:
  void* at_least(std::size_t bytes) {
#if defined(QUANTO_EXACT_BUFFERS)
    const bool grows = bytes != capacity_;
#else
    const bool grows = bytes > capacity_;
#endif
    if (grows) {
      capacity_ = 0;
      buffer_.reset();
      buffer_ = allocate(bytes);
      capacity_ = bytes;
    }
    return bytes == 0 ? nullptr : buffer_.get();
  }

 private:
  Buffer buffer_;
  std::size_t capacity_ = 0;
};

/// The scratch memory of the calling thread.
inline void* thread_buffer(std::size_t bytes) {
  thread_local GrowingBuffer buffer;
  return buffer.at_least(bytes);
}

}  // namespace quanto
