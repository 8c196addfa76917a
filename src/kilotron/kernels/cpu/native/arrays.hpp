// Python arrays as checked views. DLPack's exchange interface for C (DLPack 1.3, `__dlpack_c_exchange_api__` of the
// array's type) costs some 50 ns a tensor; arrays without it come through nanobind.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "types.hpp"

namespace kilotron {

// What an array must have been; the message names the argument.
[[noreturn]] void refuse(const char* name, const std::string& expected);

enum class Kind : uint8_t { f64, f32, f16, bf16, i64, i32, i8, other };

class Array {
  public:
    // Raises TypeError unless `object` is a CPU array with `ndim` axes, the last of them contiguous.
    Array(nanobind::handle object, const char* name, int ndim) : Array(object, name, ndim, ndim) {}
    // The same with any number of axes within two bounds.
    Array(nanobind::handle object, const char* name, int least_axes, int most_axes);

    int ndim() const { return ndim_; }

    void* data = nullptr;
    int64_t shape[4] = {};
    int64_t strides[4] = {};  // in elements
    Kind kind = Kind::other;

    // f32, f16 or bf16, or TypeError.
    DType dtype() const;
    void expect_kind(Kind expected) const;
    void expect_shape(int axis, int64_t size) const;
    void expect_axes(int ndim) const;
    // Every axis packed behind the one before.
    void expect_contiguous() const;
    template <typename Item>
    Item* as() const {
        return static_cast<Item*>(data);
    }

  private:
    const char* name_;
    int ndim_;
};

}  // namespace kilotron
