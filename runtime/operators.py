"""Operators: what a graph of a bundle may be made of.

Tensor arithmetic only: nothing that loops, branches, draws random numbers, handles strings or
sequences, or runs code of its own.
"""

_ONNX = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast CastLike Ceil Celu Clip Col2Im Compress Concat Constant ConstantOfShape Conv
    ConvInteger ConvTranspose Cos Cosh CumSum
    DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear
    Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Hardmax
    Identity InstanceNormalization IsInf IsNaN
    LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool
    MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul
    Neg NonZero Not
    OneHot Or
    PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding
    Round
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish
    Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu
    Unsqueeze Upsample
    Where
    Xor
"""

_MICROSOFT = """
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu
    ConvTransposeWithDynamicPads
    DequantizeLinear DynamicQuantizeMatMul
    FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
    GatherND Gelu GemmFastGelu GemmFloat8 GridSample GroupNorm GroupQueryAttention
    MatMulBnb4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention
    NhwcConv NhwcFusedConv NhwcMaxPool
    PackedAttention PackedMultiHeadAttention Pad
    QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid
    QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu
    RelativePositionBias RotaryEmbedding
    SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization
    Trilu
"""

ALLOWED = {"": frozenset(_ONNX.split()), "com.microsoft": frozenset(_MICROSOFT.split())}
