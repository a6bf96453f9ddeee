// An empty stand-in for libtorch_cpu.so, to link against.
