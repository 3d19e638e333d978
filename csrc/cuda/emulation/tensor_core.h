// mma.sync, ldmatrix, stmatrix, movmatrix: which lane's register holds which element, and what is computed.
#pragma once
#include <stdint.h>

namespace qkv::emulation {

enum class Element { f16, bf16 };

// D (16, 8) = A (16, K) B (K, 8) + C. K is 16 (4 registers of A and 2 of B) or 8 (2 and 1). d and c may be the same registers.
void mma_f32(int site, Element, int k, float* d, const uint32_t* a, const uint32_t* b, const float* c);
// The same with float16 sums, two a register.
void mma_f16(int site, int k, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c);

// `count` (1, 2, 4) matrices of 8 x 8 elements of 16 bits; lane i gives the address of row i % 8 of matrix i / 8.
void load_matrix(int site, int count, bool transposed, uint32_t* to, uint32_t address);
void store_matrix(int site, int count, bool transposed, const uint32_t* from, uint32_t address);
// The transpose of a matrix that lies in registers as ldmatrix puts it.
uint32_t move_matrix(int site, uint32_t a);

}  // namespace qkv::emulation
