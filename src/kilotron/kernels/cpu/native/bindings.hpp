// What the files that bind the module share.
#pragma once
#include <nanobind/nanobind.h>

#include <string>

#include "types.hpp"

namespace kilotron {

// Adds packed matrices: packing them, writing them to a file, and finding them in one.
void bind_packing(nanobind::module_& m);

// By a dtype's name, "int8" or "int4".
Format format_named(const std::string& name);

// Throws unless a number of threads is possible.
void check_threads(int threads);

}  // namespace kilotron
