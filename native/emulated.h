// Instructions that this machine may lack, in software, so that the kernels that use them run in tests
// everywhere: shuffles of bytes (AVX-512 VBMI), and the matrix unit (AMX). Included
// first, by FTWT_EMULATE alone.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define __AVX512VBMI__ 1
#if defined(FTWT_EMULATE_TILES)
#define __AMX_INT8__ 1
#endif

namespace emulated {

struct alignas(64) Bytes {
  uint8_t at[64];
};

inline Bytes bytes_of(__m512i r) {
  Bytes b;
  _mm512_store_si512(b.at, r);
  return b;
}

inline __m512i permute(uint64_t kept, __m512i places, __m512i from) {
  const Bytes p = bytes_of(places), f = bytes_of(from);
  Bytes out{};
  for (int i = 0; i < 64; ++i)
    if (kept >> i & 1) out.at[i] = f.at[p.at[i] & 63];
  return _mm512_load_si512(out.at);
}

inline __m512i permute_some(__m512i others, uint64_t chosen, __m512i places, __m512i from) {
  return _mm512_mask_mov_epi8(others, chosen, permute(chosen, places, from));
}

inline __m512i permute_two(__m512i first, __m512i places, __m512i second) {
  const __mmask64 further = _mm512_test_epi8_mask(places, _mm512_set1_epi8(64));
  return permute_some(permute(~uint64_t{0}, places, first), further, places, second);
}

// Eight tiles of at most sixteen rows of sixty-four bytes.
struct Tiles {
  int rows[8], columns[8];
  uint8_t at[8][16][64];
};
inline thread_local Tiles tiles;

inline void check(bool right) {
  if (!right) __builtin_trap();  // as the processor faults
}

inline void zero(int t) { std::memset(tiles.at[t], 0, sizeof tiles.at[t]); }

inline void configure(const void* p) {
  const uint8_t* from = static_cast<const uint8_t*>(p);
  check(from[0] == 1);
  for (int t = 0; t < 8; ++t) {
    tiles.columns[t] = from[16 + 2 * t] | from[17 + 2 * t] << 8;
    tiles.rows[t] = from[48 + t];
    check(tiles.rows[t] <= 16 && tiles.columns[t] <= 64);
    zero(t);
  }
}

inline void load(int t, const void* from, int64_t pitch) {
  zero(t);
  for (int r = 0; r < tiles.rows[t]; ++r)
    std::memcpy(tiles.at[t][r], static_cast<const char*>(from) + r * pitch, tiles.columns[t]);
}

inline void store(int t, void* to, int64_t pitch) {
  for (int r = 0; r < tiles.rows[t]; ++r)
    std::memcpy(static_cast<char*>(to) + r * pitch, tiles.at[t][r], tiles.columns[t]);
}

// Tile `sums` += tile `a`, signed bytes, times tile `b`, bytes of type B, four in a dword.
template <class B>
inline void multiply(int sums, int a, int b) {
  check(tiles.rows[sums] == tiles.rows[a] && tiles.columns[sums] == tiles.columns[b] && tiles.columns[a] == 4 * tiles.rows[b]);
  for (int m = 0; m < tiles.rows[sums]; ++m)
    for (int n = 0; n < tiles.columns[sums]; n += 4) {
      int32_t sum;
      std::memcpy(&sum, &tiles.at[sums][m][n], 4);
      for (int k = 0; k < tiles.columns[a]; ++k)
        sum += static_cast<int8_t>(tiles.at[a][m][k]) * static_cast<B>(tiles.at[b][k / 4][n + k % 4]);
      std::memcpy(&tiles.at[sums][m][n], &sum, 4);
    }
}

}  // namespace emulated

#define _mm512_maskz_permutexvar_epi8 emulated::permute
#define _mm512_mask_permutexvar_epi8 emulated::permute_some
#define _mm512_permutex2var_epi8 emulated::permute_two
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#define _tile_loadconfig emulated::configure
#define _tile_release() static_cast<void>(0)
#define _tile_zero emulated::zero
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbssd emulated::multiply<int8_t>
#define _tile_dpbsud emulated::multiply<uint8_t>
