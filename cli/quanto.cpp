#include <cstdio>
#include <exception>

#include "commands.h"

namespace {

constexpr int kFailure = 2;

int run(int argc, char** argv) {
  CLI::App app{"Quantization of model weights", "quanto"};
  app.set_version_flag("--version", QUANTO_VERSION);
  app.require_subcommand(1);
  quanto::cli::add_isas(app);
  quanto::cli::add_qtypes(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "quanto: %s\n", error.what());
    return kFailure;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quanto: %s\n", error.what());
    return kFailure;
  }
}
