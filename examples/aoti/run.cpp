// Runs a quantized model that export.py compiled ahead of time: no Python in the process, Quanto's operators come from
// their shared library.
//
//   run PACKAGE LIBRARY INPUT ROWS OUTPUT
//
// INPUT holds ROWS rows of raw float32 numbers, OUTPUT gets the result in the same form.
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

/// Loading the library registers torch.ops.quanto.*; the symbols of libtorch are in this process already.
void load_operators(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void run(char** argv) {
  load_operators(argv[2]);
  std::vector<char> bytes = read_file(argv[3]);
  const std::int64_t rows = std::stoll(argv[4]);
  const auto elements = static_cast<std::int64_t>(bytes.size() / sizeof(float));
  if (rows <= 0 || elements % rows != 0) throw std::runtime_error("ROWS does not divide the numbers of INPUT");

  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const at::Tensor input = at::from_blob(bytes.data(), {rows, elements / rows}, at::kFloat);
  const at::Tensor output = model.run({input}).at(0).contiguous();
  std::ofstream(argv[5], std::ios::binary)
      .write(static_cast<const char*>(output.const_data_ptr()), static_cast<std::streamsize>(output.nbytes()));
  std::cout << "wrote " << output.sizes() << " numbers\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: run PACKAGE LIBRARY INPUT ROWS OUTPUT\n";
    return 2;
  }
  try {
    run(argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
