// Stand-ins for what CuPy passes to an ElementwiseKernel: an array with its shape and strides, and the loop's index.
// The layout is CuPy's; its own header has the constructors and iterators that no kernel of ours uses.
#pragma once

#define CUPY_FOR(i, n)                                                                                                 \
    for (ptrdiff_t i = static_cast<ptrdiff_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (n);                         \
         i += static_cast<ptrdiff_t>(blockDim.x) * gridDim.x)

template <typename T, int N, bool contiguous = false, bool short_index = false>
class CArray {
    T* data_;
    ptrdiff_t size_, shape_[N ? N : 1], strides_[N ? N : 1];

public:
    static const int ndim = N;
    ptrdiff_t size() const { return size_; }
    const ptrdiff_t* shape() const { return shape_; }
    const ptrdiff_t* strides() const { return strides_; }

    // By an index for every axis.
    template <typename I>
    T& operator[](const I (&index)[N]) {
        ptrdiff_t offset = 0;
        for (int axis = 0; axis < N; axis++) offset += strides_[axis] * index[axis];
        return *(T*)((char*)data_ + offset);
    }
    // By one number, counted through the array in C order.
    T& operator[](ptrdiff_t i) {
        if (contiguous) return data_[i];
        ptrdiff_t offset = 0;
        for (int axis = N; --axis > 0; i /= shape_[axis]) offset += strides_[axis] * (i % shape_[axis]);
        return *(T*)((char*)data_ + offset + strides_[0] * i);
    }
    // An input is const, and so are its elements.
    template <typename I>
    const T& operator[](const I (&index)[N]) const {
        return const_cast<CArray&>(*this)[index];
    }
    const T& operator[](ptrdiff_t i) const { return const_cast<CArray&>(*this)[i]; }
};

template <int N, bool short_index = false>
class CIndexer {
    ptrdiff_t size_, shape_[N], index_[N];

public:
    static const int ndim = N;
    ptrdiff_t size() const { return size_; }
    const ptrdiff_t (&get() const)[N] { return index_; }
    void set(ptrdiff_t i) {
        for (int axis = N; --axis > 0; i /= shape_[axis]) index_[axis] = i % shape_[axis];
        index_[0] = i;
    }
};
