"""Of `metal/packed.metal`, for every kernel that uses it."""

from . import Fault

FAULTS = [
    Fault("to.scale = float(", "to.scale = half("),
    Fault("int word = i * BITS / 32,", "int word = i / (32 / BITS),"),
    Fault("shift = i * BITS % 32;", "shift = i % (32 / BITS) * BITS;"),
    Fault("block.words[word] >> shift", "block.words[0] >> shift"),
    Fault("if (shift + BITS > 32) {", "if (shift + BITS > 33) {"),
    Fault("if (shift + BITS > 32) {", "if (shift + BITS >= 32) {"),
    Fault("if (shift + BITS > 32) {", "if (false) {"),
    Fault("q |= block.words[word + 1]", "q = block.words[word + 1]"),
    Fault("words[word + 1] << (32 - shift)", "words[word + 1] << (31 - shift)"),
    Fault("words[word + 1] <<", "words[word] <<"),
    Fault("(1u << BITS) - 1)", "(1u << (BITS - 1)) - 1)"),
    Fault("block.scale, block.bias)", "block.bias, block.scale)"),
    Fault(
        "return fma(float(q & ((1u << BITS) - 1)), block.scale, block.bias);",
        "return half(fma(float(q & ((1u << BITS) - 1)), block.scale, block.bias));",
    ),
    Fault("int i = 0; i < WORDS; i++", "int i = 0; i < WORDS - 1; i++"),
    Fault("w[at * WORDS + i]", "w[at * WORDS]"),
    Fault("w[at * WORDS + i]", "w[at * WORDS + WORDS - 1 - i]"),
    Fault("w[at * WORDS + i]", "w[(at + 1) * WORDS + i]"),
    Fault("scales[at * VALUES / GROUP]", "scales[at]"),
    Fault("scales[at * VALUES / GROUP]", "scales[at * VALUES / GROUP + 1]"),
    Fault("biases[at * VALUES / GROUP]", "biases[at * GROUP / VALUES]"),
    Fault("biases[at * VALUES / GROUP]", "scales[at * VALUES / GROUP]"),
    Fault("biases[at * VALUES / GROUP]", "biases[at * VALUES / 32]"),
]
