// Starting a kernel that takes one argument.
#pragma once
#include <cuda_runtime.h>

namespace tmem::cuda {

template <class A>
cudaError_t run(void (*kernel)(A), dim3 grid, int threads, cudaStream_t stream, A a) {
  void* arguments[] = {&a};
  return cudaLaunchKernel(kernel, grid, dim3(threads), arguments, 0, stream);
}

// The same with `bytes` of shared memory whose size is known at run time, at ROOM of the kernel.
template <class A>
cudaError_t run_with_room(void (*kernel)(A), dim3 grid, int threads, size_t bytes, cudaStream_t stream, A a) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  void* arguments[] = {&a};
  return cudaLaunchKernel(kernel, grid, dim3(threads), arguments, bytes, stream);
}

// The same with the blocks in clusters of `blocks`, side by side in grid.x.
template <class A>
cudaError_t run_in_clusters(void (*kernel)(A), dim3 grid, int blocks, int threads, size_t bytes, cudaStream_t stream, A a) {
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = bytes, config.stream = stream;
  config.attrs = &cluster, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, a);
}

#ifdef TMEM_EMULATED
#define ROOM(name) float* name = emulation::room()
#else
#define ROOM(name) extern __shared__ __align__(16) float name[]
#endif

// As many blocks as the GPU holds at once, `most` at most, all of them running together: they may wait for one another.
template <class A>
cudaError_t run_together(void (*kernel)(A), int64_t most, int threads, cudaStream_t stream, A a) {
  int device, processors, blocks;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0);
  if (status != cudaSuccess) return status;
  const int64_t all = static_cast<int64_t>(processors) * blocks;
  void* arguments[] = {&a};
  return cudaLaunchCooperativeKernel(kernel, dim3(all < most ? all : most), dim3(threads), arguments, 0, stream);
}

}  // namespace tmem::cuda
