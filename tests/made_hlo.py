"""Written HLO programs, for whoever reads one."""

HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[2,8,8,4], p1: f32[3,3,4,4]) -> bf16[2,8,8,4] {
  %p0 = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %p1 = f32[3,3,4,4]{3,2,1,0} parameter(1)
  %inner = f32[2,8,8,4]{3,2,1,0} convolution(%p0, %p1), window={size=3x3}, \
dim_labels=b01f_01io->b01f, \
metadata={op_name="jit(one)/transpose(jvp(Net))/down_1/conv/conv_dilated"}
  ROOT %half = bf16[2,8,8,4]{3,2,1,0} convert(%inner)
}

%body (state: (f32[], /*index=1*/f32[2,8,8,4])) -> (f32[], f32[2,8,8,4]) {
  %state = (f32[], /*index=1*/f32[2,8,8,4]{3,2,1,0:T(8,4)}) parameter(0)
  %gte = f32[2,8,8,4]{3,2,1,0:T(8,4)} get-tuple-element(%state), index=1
  %zero = f32[] constant(0)
  %total = f32[] reduce(%gte, %zero), dimensions={0,1,2,3}, to_apply=%add
  ROOT %again = (f32[], f32[2,8,8,4]{3,2,1,0}) tuple(%total, %gte)
}

ENTRY %main (x: f32[2,8,8,4], k: f32[3,3,4,4]) -> bf16[2,8,8,4] {
  %x = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %k = f32[3,3,4,4]{3,2,1,0} parameter(1)
  %flip = f32[2,4,8,8]{3,2,1,0} transpose(%x), dimensions={0,3,1,2}
  %mask = u32[256]{0} rng-bit-generator(%x), algorithm=rng_default
  %loop = (f32[], f32[2,8,8,4]{3,2,1,0}) while(%init), condition=%cond, \
body=%body
  %moved = f32[2,8,8,4]{3,2,1,0} copy(%x)
  %cudnn = (f32[2,8,8,4]{3,2,1,0}, u8[16]{0}) custom-call(%x, %k), \
custom_call_target="__cudnn$convForward"
  ROOT %out = bf16[2,8,8,4]{3,2,1,0} fusion(%moved, %k), kind=kLoop, \
calls=%fused, metadata={op_name="jit(one)/Net/cast/convert"}
}
"""
IMAGE, KERNEL = 4 * 2 * 8 * 8 * 4, 4 * 3 * 3 * 4 * 4

# As XLA writes one for a GPU. `flat` has 1,000 parameters in one vector.
GPU_HLO = """HloModule jit_step, is_scheduled=true

%take (f: f32[1000]) -> bf16[10,30] {
  %f = f32[1000]{0} parameter(0)
  %view = f32[1000]{0} bitcast(%f)
  %cast = bf16[1000]{0} convert(%view)
  %part = bf16[300]{0} slice(%cast), slice={[700:1000]}
  ROOT %kernel = bf16[10,30]{1,0} bitcast(%part)
}

%put (g: f32[300], old: f32[1000]) -> f32[1000] {
  %old = f32[1000]{0} parameter(1)
  %g = f32[300]{0} parameter(0)
  %at = s32[] constant(700)
  ROOT %new = f32[1000]{0} dynamic-update-slice(%old, %g, %at)
}

%both (a: f32[1000], b: f32[1000]) -> (f32[300], f32[1000]) {
  %b = f32[1000]{0} parameter(1)
  %a = f32[1000]{0} parameter(0)
  %head = f32[300]{0} slice(%a), slice={[0:300]}
  %tail = f32[300]{0} slice(%b), slice={[700:1000]}
  %twice = f32[1000]{0} add(%b, %b)
  %mixed = f32[300]{0} add(%head, %tail)
  ROOT %pair = (f32[300]{0}, /*index=1*/f32[1000]{0}) tuple(%mixed, %twice)
}

%body (state: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %state = (s32[], f32[1000]{0}) parameter(0)
  %now = f32[1000]{0} get-tuple-element(%state), index=1
  %next = f32[1000]{0} copy(%now)
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %out = (s32[], f32[1000]{0}) tuple(%count, %next)
}

%cond (seen: (s32[], f32[1000])) -> pred[] {
  %seen = (s32[], f32[1000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%seen), index=0
  %end = s32[] constant(4)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (flat: f32[1000], x: bf16[8,10], rms: f32[1000]) -> f32[1000] {
  %flat = f32[1000]{0} parameter(0)
  %rms = f32[1000]{0} parameter(2)
  %x = bf16[8,10]{1,0} parameter(1)
  %w = bf16[10,30]{1,0} fusion(%flat), kind=kLoop, calls=%take, \
metadata={op_name="jit(step)/jvp(Net)/conv_1/convert_element_type"}
  %y = (bf16[8,30]{1,0}, u8[64]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", \
metadata={op_name="jit(step)/jvp(Net)/conv_1/dot_general"}
  %y0 = bf16[8,30]{1,0} get-tuple-element(%y), index=0
  %dw = (f32[300]{0}, /*index=1*/f32[1000]{0}) fusion(%flat, %rms), \
kind=kInput, calls=%both, metadata={op_name="jit(step)/mul"}
  %dw0 = f32[300]{0} get-tuple-element(%dw), index=0
  %sum = f32[300]{0} all-reduce-start(%dw0), to_apply=%add
  %sum.d = f32[300]{0} all-reduce-done(%sum)
  %all = (f32[300]{0}, f32[600]{0}) all-gather-start(%dw0), dimensions={0}
  %all.d = f32[600]{0} all-gather-done(%all)
  %grown = f32[1000]{0} fusion(%sum.d, %flat), kind=kLoop, calls=%put, \
metadata={op_name="jit(step)/dynamic_update_slice"}
  %loop = (s32[], f32[1000]{0}) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
  %cut = f32[30]{0} dynamic-slice(%grown, %at.1), dynamic_slice_sizes={30}
  ROOT %done = f32[1000]{0} bitcast(%grown)
}
"""

# As libtpu writes a collective that runs while a product is computed: the same
# one in three fusions.
ASYNC_HLO = """HloModule jit_step, num_partitions=4

%begin (p: f32[8]) -> (f32[8], f32[32], u32[], u32[]) {
  %p = f32[8]{0} parameter(0)
  %ag.1 = f32[32]{0} all-gather(%p), channel_id=31, dimensions={0}
  ROOT %cc = (f32[8]{0}, f32[32]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%during (q: f32[8], r: f32[32], a: f32[8,8], b: f32[8,8]) -> \
(f32[8,8], f32[8], f32[32], f32[32]) {
  %q = f32[8]{0} parameter(0)
  %r = f32[32]{0} parameter(1)
  %a = f32[8,8]{1,0} parameter(2)
  %b = f32[8,8]{1,0} parameter(3)
  %product = f32[8,8]{1,0} dot(%a, %b)
  %ag.2 = f32[32]{0} all-gather(%q), channel_id=31, dimensions={0}
  ROOT %all = (f32[8,8]{1,0}, f32[8]{0}, f32[32]{0}, f32[32]{0}) \
tuple(%product, %q, %r, %ag.2)
}

%end (s: f32[8], t: f32[32]) -> f32[32] {
  %s = f32[8]{0} parameter(0)
  %t = f32[32]{0} parameter(1)
  %ag.3 = f32[32]{0} all-gather(%s), channel_id=31, dimensions={0}
  ROOT %dd = f32[32]{0} custom-call(%s, %t, %ag.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8], m: f32[8,8]) -> f32[32] {
  %x = f32[8]{0} parameter(0)
  %m = f32[8,8]{1,0} parameter(1)
  %start = (f32[8]{0}, f32[32]{0}, u32[]{:S(2)}, u32[]{:S(2)}) fusion(%x), \
kind=kCustom, calls=%begin
  %s0 = f32[8]{0} get-tuple-element(%start), index=0
  %s1 = f32[32]{0} get-tuple-element(%start), index=1
  %work = (f32[8,8]{1,0}, f32[8]{0}, f32[32]{0}, f32[32]{0}) \
fusion(%s0, %s1, %m, %m), kind=kOutput, calls=%during
  %w1 = f32[8]{0} get-tuple-element(%work), index=1
  %w2 = f32[32]{0} get-tuple-element(%work), index=2
  %done = f32[32]{0} fusion(%w1, %w2), kind=kCustom, calls=%end
  ROOT %use = f32[32]{0} negate(%done)
}
"""
