// The one exception type of the core.
#pragma once

#include <stdexcept>

namespace quanto {

/// Thrown for every invalid argument or unsupported case, with a message of the form
/// `[function] what: got ..., expected ...`. The core never prints and never exits.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace quanto
