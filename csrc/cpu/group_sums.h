// Sums over the positives of groups of rows. A group is an image, or the whole batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace mdssd {

constexpr int64_t kPieceRows = 512;  // rows per task and per partial sum

struct GroupSum {
  double loss = 0;
  int64_t positives = 0;
};

// Runs body(piece, group, begin, end) on pieces of up to kPieceRows rows, each of a single group.
// The pieces are numbered from 0, those of a group one after the other.
template <class Body>
void for_each_piece(int threads, int64_t groups, int64_t group_rows, const Body& body) {
  const int64_t pieces = (group_rows + kPieceRows - 1) / kPieceRows;
  parallel_for(threads, groups * pieces, [&](int64_t piece) {
    const int64_t group = piece / pieces, first = piece % pieces * kPieceRows;
    const int64_t begin = group * group_rows + first;
    body(piece, group, begin, begin + std::min(kPieceRows, group_rows - first));
  });
}

// Adds the GroupSums that body(begin, end) returns for the pieces, in this order. loss[group] is
// the sum divided by normaliser[group], which is max(1, positives), or 1 unless `normalise`.
template <class T, class Body>
void sum_groups(int threads, int64_t groups, int64_t group_rows, bool normalise, T* loss,
                int64_t* normaliser, const Body& body) {
  const int64_t pieces = (group_rows + kPieceRows - 1) / kPieceRows;
  std::vector<GroupSum> parts(groups * pieces);
  for_each_piece(threads, groups, group_rows,
                 [&](int64_t piece, int64_t, int64_t begin, int64_t end) {
                   parts[piece] = body(begin, end);
                 });
  for (int64_t group = 0; group < groups; ++group) {
    GroupSum total;
    for (int64_t piece = group * pieces; piece < (group + 1) * pieces; ++piece) {
      total.loss += parts[piece].loss;
      total.positives += parts[piece].positives;
    }
    normaliser[group] = normalise ? std::max<int64_t>(1, total.positives) : 1;
    loss[group] = T(total.loss / double(normaliser[group]));
  }
}

}  // namespace mdssd
