// All kernels for one instruction set: compiled once for each with its flags, TMEM_ISA naming it. Nothing but the table
// leaves this file, so that no function of another instruction set can be linked in its place.
#include "attend.h"
#include "branches.h"
#include "expand.h"
#include "gram.h"
#include "kernels.h"
#include "layer.h"
#include "product.h"
#include "shrink.h"
#include "skinny.h"
#include "step.h"
#include "token.h"
#include "token_logp.h"

#define TMEM_JOIN2(a, b) a##b
#define TMEM_JOIN(a, b) TMEM_JOIN2(a, b)
#define TMEM_TEXT2(a) #a
#define TMEM_TEXT(a) TMEM_TEXT2(a)
#define TMEM_FACTORS(kernel, T) {kernel<T, float>, kernel<T, bf16>, kernel<T, f16>, nullptr}
#define TMEM_PAIRS(kernel)                                                                          \
  {                                                                                                 \
    TMEM_FACTORS(kernel, float), TMEM_FACTORS(kernel, bf16), TMEM_FACTORS(kernel, f16), {           \
      nullptr, nullptr, nullptr, kernel<double, double>                                             \
    }                                                                                               \
  }
#define TMEM_ALL(kernel, T) {kernel<T, float>, kernel<T, bf16>, kernel<T, f16>, kernel<T, double>}

namespace tmem {

extern const Kernels TMEM_JOIN(kernels_, TMEM_ISA);
const Kernels TMEM_JOIN(kernels_, TMEM_ISA) = {
    TMEM_TEXT(TMEM_ISA),
    TMEM_PAIRS(shrink),
    TMEM_PAIRS(expand),
    {gram<float>, gram<bf16>, gram<f16>, gram<double>},
    {sum_of_squares<float>, nullptr, nullptr, sum_of_squares<double>},
    {update<float>, nullptr, nullptr, update<double>},
    {attend<float>, attend<bf16>, attend<f16>, attend<double>},
    {attend_branches<float>, attend_branches<bf16>, attend_branches<f16>, attend_branches<double>},
    {attend_branches_backward<float>, attend_branches_backward<bf16>, attend_branches_backward<f16>,
     attend_branches_backward<double>},
    attend_branches_scratch,
    {product<float>, product<bf16>, product<f16>, product<double>},
    skinny<float>,
    {widen<float>, widen<bf16>, widen<f16>},
    {magnitude<float, uint32_t>, magnitude<bf16, uint16_t>, magnitude<f16, uint16_t>},
    {token_norm<float>, token_norm<bf16>, token_norm<f16>, token_norm<double>},
    {token_glu<float>, token_glu<bf16>, token_glu<f16>, token_glu<double>},
    {TMEM_ALL(token_rope, float), TMEM_ALL(token_rope, bf16), TMEM_ALL(token_rope, f16), TMEM_ALL(token_rope, double)},
    {gated_product<float>, gated_product<bf16>, gated_product<f16>, gated_product<double>},
    {gated_product_backward<float>, gated_product_backward<bf16>, gated_product_backward<f16>, gated_product_backward<double>},
    {rms_norm<float>, rms_norm<bf16>, rms_norm<f16>, rms_norm<double>},
    {rms_norm_backward<float>, rms_norm_backward<bf16>, rms_norm_backward<f16>, rms_norm_backward<double>},
    {token_logp<float>, token_logp<bf16>, token_logp<f16>, token_logp<double>},
    {token_logp_backward<float>, token_logp_backward<bf16>, token_logp_backward<f16>, token_logp_backward<double>},
    {rotate<float>, rotate<bf16>, rotate<f16>, rotate<double>},
};

}  // namespace tmem
