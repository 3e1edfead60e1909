"""A written HLO program, for whoever reads one."""

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
  %state = (f32[], /*index=1*/f32[2,8,8,4]{3,2,1,0:T(8,128)}) parameter(0)
  %gte = f32[2,8,8,4]{3,2,1,0:T(8,128)} get-tuple-element(%state), index=1
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
