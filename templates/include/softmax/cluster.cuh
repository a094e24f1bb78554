#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include <softmax/reduce.cuh>

// Partials of a row that the CTAs of a thread block cluster share, exchanged through distributed shared memory.

namespace softmax {

struct ClusterParams
{
  int32_t columns;  // of a row for each CTA
};

// One partial per warp becomes that of the whole cluster, in every thread. Each warp hands its partial to every CTA.
//
// A CTA's shared memory may be written once it runs: the kernel begins with cute::cluster_arrive_relaxed(), which pairs with
// the first wait. Behind the second nobody touches another CTA's memory, so each may leave when it likes.
template <class Partial>
CUTE_DEVICE Partial over_cluster(Partial warp, Partial* sPartials /* (warps*CTAs) */)
{
  int const lane  = threadIdx.x % 32;
  int const warps = blockDim.x / 32;
  int const ctas  = __clusterSizeInBlocks();
  int const slot  = __clusterRelativeBlockRank() * warps + threadIdx.x / 32;

  cute::cluster_wait();
  if (lane < ctas) { *static_cast<Partial*>(__cluster_map_shared_rank(sPartials + slot, lane)) = warp; }
  cute::cluster_arrive();
  cute::cluster_wait();

  Partial all = Partial::nothing();
  CUTE_NO_UNROLL
  for (int i = lane; i < warps * ctas; i += 32) { all.add(sPartials[i]); }
  return all.template over_lanes<32>();
}

}  // namespace softmax
