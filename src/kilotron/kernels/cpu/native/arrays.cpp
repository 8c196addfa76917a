#include "arrays.hpp"

#include <array>

namespace nb = nanobind;

namespace kilotron {

namespace {

// The parts of dlpack.h (version 1) that are read here; see https://dmlc.github.io/dlpack/latest/c_api.html.
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;  // null: contiguous
    uint64_t byte_offset;
};
struct DLPackExchangeAPI {
    uint32_t major, minor;
    void* older;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, DLTensor* tensor);  // may be null
};
constexpr int kMostAxes = 4;  // as in arrays.hpp
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

Kind kind_of(uint8_t code, uint8_t bits) {
    if (code == kFloat && bits == 64) return Kind::f64;
    if (code == kFloat && bits == 32) return Kind::f32;
    if (code == kFloat && bits == 16) return Kind::f16;
    if (code == kBfloat && bits == 16) return Kind::bf16;
    if (code == kInt && bits == 64) return Kind::i64;
    if (code == kInt && bits == 32) return Kind::i32;
    if (code == kInt && bits == 8) return Kind::i8;
    return Kind::other;
}

const char* name_of(Kind kind) {
    constexpr std::array names{"float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "another dtype"};
    return names[static_cast<size_t>(kind)];
}

const DLPackExchangeAPI* exchange_of(nb::handle object) {
    const nb::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())));
    PyObject* capsule = PyObject_GetAttrString(type.ptr(), "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
        return nullptr;
    }
    const auto owned = nb::steal(capsule);
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (api == nullptr) {
        PyErr_Clear();
        return nullptr;
    }
    return api->major == 1 && api->tensor_from_object != nullptr ? api : nullptr;
}

// What a tensor says of itself. Shape and strides may lie in `axes`: nanobind's array takes its own ones with it.
DLTensor view_of(nb::handle object, const char* name, int64_t (&axes)[2][kMostAxes]) {
    DLTensor tensor{};
    if (const DLPackExchangeAPI* api = exchange_of(object)) {
        if (api->tensor_from_object(object.ptr(), &tensor) != 0) {
            PyErr_Clear();
            refuse(name, "an array in the memory of the CPU");
        }
        return tensor;
    }
    nb::ndarray<> array;
    if (!nb::try_cast(object, array)) refuse(name, "an array");
    tensor.data = array.data();
    tensor.device_type = array.device_type();
    tensor.ndim = static_cast<int32_t>(array.ndim());
    tensor.code = array.dtype().code;
    tensor.bits = array.dtype().bits;
    tensor.lanes = array.dtype().lanes;
    tensor.shape = axes[0];
    tensor.strides = axes[1];
    for (int axis = 0; axis < tensor.ndim && axis < kMostAxes; axis++) {
        axes[0][axis] = static_cast<int64_t>(array.shape(axis));
        axes[1][axis] = array.stride(axis);
    }
    return tensor;
}

}  // namespace

void refuse(const char* name, const std::string& expected) {
    throw nb::type_error((std::string(name) + ": expected " + expected).c_str());
}

Array::Array(nb::handle object, const char* name, int least_axes, int most_axes) : name_(name) {
    int64_t axes[2][kMostAxes];
    const DLTensor tensor = view_of(object, name, axes);
    const int ndim = ndim_ = tensor.ndim;
    if (tensor.device_type != kCpu) refuse(name, "an array in the memory of the CPU");
    if (ndim < least_axes || ndim > most_axes)
        refuse(name, std::to_string(least_axes) + " axes, found " + std::to_string(ndim));
    kind = tensor.lanes == 1 ? kind_of(tensor.code, tensor.bits) : Kind::other;
    int64_t contiguous = 1;
    for (int axis = ndim - 1; axis >= 0; axis--) {
        shape[axis] = tensor.shape[axis];
        strides[axis] = tensor.strides == nullptr || shape[axis] == 1 ? contiguous : tensor.strides[axis];
        if (strides[axis] < 0) refuse(name, "no negative strides");
        contiguous *= shape[axis];
    }
    if (contiguous != 0 && strides[ndim - 1] != 1) refuse(name, "a contiguous last axis");
    data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
}

DType Array::dtype() const {
    switch (kind) {
        case Kind::f32: return DType::f32;
        case Kind::f16: return DType::f16;
        case Kind::bf16: return DType::bf16;
        default: refuse(name_, std::string("float32, float16 or bfloat16, found ") + name_of(kind));
    }
}

void Array::expect_kind(Kind expected) const {
    if (kind != expected) refuse(name_, std::string(name_of(expected)) + ", found " + name_of(kind));
}

void Array::expect_shape(int axis, int64_t size) const {
    if (shape[axis] != size)
        refuse(name_, "size " + std::to_string(size) + " of axis " + std::to_string(axis) + ", found " +
                          std::to_string(shape[axis]));
}

void Array::expect_axes(int ndim) const {
    if (ndim_ != ndim) refuse(name_, std::to_string(ndim) + " axes, found " + std::to_string(ndim_));
}

void Array::expect_contiguous() const {
    for (int axis = 0; axis < ndim_; axis++)
        if (shape[axis] == 0) return;
    int64_t contiguous = 1;
    for (int axis = ndim_ - 1; axis >= 0; axis--) {
        if (shape[axis] > 1 && strides[axis] != contiguous) refuse(name_, "a contiguous array");
        contiguous *= shape[axis];
    }
}

}  // namespace kilotron
