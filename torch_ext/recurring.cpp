#include "recurring.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <deque>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

// Of torch's stable ABI since 2.11; in 2.10 it is not there, and its address is null.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, std::int64_t ndim, const std::int64_t* sizes, const std::int64_t* strides, std::int64_t storage_offset,
    std::int32_t dtype, std::int32_t device_type, std::int32_t device_index, AtenTensorHandle* ret, std::int32_t layout,
    const std::uint8_t* opaque_metadata, std::int64_t opaque_metadata_size, void (*deleter)(void* data, void* context),
    void* deleter_context);
#endif

namespace quanto::torch_ext {

#if defined(__linux__)
namespace {

// glibc takes these blocks from the end of its heap. A training step frees each rounded weight beside a gradient of the
// same size, and where both are at the end, that is enough for glibc to return it: the next step meets every page of
// both for the first time, which took a step of a 2048 x 2048 bfloat16 layer from 1.2 to 2.6 times the float one.
constexpr std::size_t kLarge = std::size_t{1} << 20;

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Block {
  void* data;
  std::size_t bytes;
};

std::size_t rounded_up(std::size_t bytes, std::size_t step) { return (bytes + step - 1) / step * step; }

std::size_t mapped_bytes(std::size_t bytes) { return rounded_up(bytes, bytes < kHugePage ? 4096 : kHugePage); }

/// How much is kept at most. All rounded weights of a model are alive at the end of its forward, so that keeping them
/// adds nothing to what a step needs: 12 such layers take 1.1 times the float step where all are kept, 1.5 where 64 MB
/// are. The bound is for what is left behind by a training that ended.
std::size_t most_kept() {
  static const std::size_t bytes =
      static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) / 16;
  return bytes;
}

void unmap(const Block& block) { munmap(block.data, block.bytes); }

/// New memory, on huge pages where they fit.
void* map(std::size_t bytes) {
  const bool huge = bytes >= kHugePage;
  const std::size_t spare = huge ? kHugePage : 0;
  void* mapped = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  if (!huge) return mapped;
  auto* const begin = static_cast<char*>(mapped);
  const auto address = reinterpret_cast<std::uintptr_t>(mapped);
  const std::size_t before = rounded_up(address, kHugePage) - address;
  if (before > 0) munmap(begin, before);
  if (before < spare) munmap(begin + before + bytes, spare - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // only advice: failing changes nothing
#endif
  return begin + before;
}

/// The freed blocks. A lock that is taken, by a thread that a fork left behind for instance, is not waited for: the
/// memory comes from the system and goes back to it.
class Kept {
 public:
  void* take(std::size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if (block->bytes != bytes) continue;
      void* const data = block->data;
      blocks_.erase(std::next(block).base());
      bytes_ -= bytes;
      return data;
    }
    return nullptr;
  }

  /// Keeps a block instead of those that were kept for longest.
  void give(const Block& block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || block.bytes > most_kept()) return unmap(block);
    shrink(most_kept() - block.bytes);
    blocks_.push_back(block);
    bytes_ += block.bytes;
  }

  void release() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) shrink(0);
  }

 private:
  void shrink(std::size_t bytes) {
    while (bytes_ > bytes) {
      bytes_ -= blocks_.front().bytes;
      unmap(blocks_.front());
      blocks_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;
  std::size_t bytes_ = 0;
};

Kept& kept() {
  static Kept& blocks = *new Kept;  // tensors may be freed after the destructors of statics ran
  return blocks;
}

void give_back(void* data, void* bytes) { kept().give({data, reinterpret_cast<std::uintptr_t>(bytes)}); }

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int64_t> strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

}  // namespace

Tensor empty_recurring(const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  std::size_t needed = dtype == ScalarType::Float ? 4 : 2;
  for (const std::int64_t size : sizes) needed *= static_cast<std::size_t>(size);
  if (needed < kLarge || torch_from_blob == nullptr) return empty(sizes, dtype);
  const std::size_t bytes = mapped_bytes(needed);
  void* data = kept().take(bytes);
  if (data == nullptr) data = map(bytes);
  if (data == nullptr) return empty(sizes, dtype);
  const auto strides = contiguous_strides(sizes);
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
      data, static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype)), aoti_torch_device_type_cpu(), -1,
      &handle, aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(bytes)));
  return Tensor(handle);
}

void release_recurring_memory() { kept().release(); }

#else

Tensor empty_recurring(const std::vector<std::int64_t>& sizes, ScalarType dtype) { return empty(sizes, dtype); }
void release_recurring_memory() {}

#endif

}  // namespace quanto::torch_ext
