// All kernels for one instruction set: compiled once for each with its flags, TMEM_ISA naming it. Nothing but the table
// leaves this file, so that no function of another instruction set can be linked in its place.
#include "attend.h"
#include "expand.h"
#include "gram.h"
#include "kernels.h"
#include "shrink.h"
#include "skinny.h"
#include "step.h"

#define TMEM_JOIN2(a, b) a##b
#define TMEM_JOIN(a, b) TMEM_JOIN2(a, b)
#define TMEM_TEXT2(a) #a
#define TMEM_TEXT(a) TMEM_TEXT2(a)

namespace tmem {

extern const Kernels TMEM_JOIN(kernels_, TMEM_ISA);
const Kernels TMEM_JOIN(kernels_, TMEM_ISA) = {
    TMEM_TEXT(TMEM_ISA),
    {shrink<float, float>, shrink<float, bf16>, shrink<bf16, float>, shrink<bf16, bf16>, shrink<double, double>},
    {expand<float, float>, expand<float, bf16>, expand<bf16, float>, expand<bf16, bf16>, expand<double, double>},
    {gram<float>, gram<bf16>, gram<double>},
    {sum_of_squares<float>, nullptr, sum_of_squares<double>},
    {update<float>, nullptr, update<double>},
    {attend<float>, attend<bf16>, attend<double>},
    skinny,
    {widen<float>, widen<bf16>, widen<f16>},
    {magnitude<float, uint32_t>, magnitude<bf16, uint16_t>, magnitude<f16, uint16_t>},
};

}  // namespace tmem
