"""What it is worth to say the one shape of the input: int8 networks with ``input_shape`` beside those without.

    python benchmarks/fixed_shape.py [NET ...] [--batch-sizes 1 8] [--repeats 40]

Both are held in this process (`mxq.runtime.serve`), with their inputs in memory, and take turns. SQNR is that of the
outputs on another example, beside the float network's; a detector's boxes change place with the slightest noise.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from zoo import DETECTOR, NETS, Net, build, examples

from mxq import pipeline
from mxq.bench.timing import bench
from mxq.config import QuantConfig, Shape
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, serve

USUAL = ["resnet18_v1", "resnet50_v1", "mobilenetv2_1.0", "yolo3_darknet53_voc", "ssd_300_vgg16_atrous_voc"]


def made(model: Model, net: Net, shape: Shape | None) -> Model:
    """The int8 network, without a further look at the data: the operators are the same."""
    config = QuantConfig(num_calib_examples="100%", effort="fast", stem="float", input_shape=shape)
    prepared = pipeline.plan(model, config, MxnetRunner())
    found = pipeline.calibrate(prepared, examples(net, 4, seed=3), MxnetRunner(), progress=False)
    return pipeline.quantize(prepared, found).model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=USUAL)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    table = Table("network", "batch", "any shape ms", "one shape ms", "times as fast (p10-p90)", "SQNR dB")
    for name in args.nets:
        net, model = NETS[name], build(name)
        pairs = {"any": made(model, net, None), "one": made(model, net, net.shape)}
        for batch in args.batch_sizes:
            feeds = {model.inputs[0]: examples(net, batch)}
            held = {kind: serve(pair, feeds) for kind, pair in pairs.items()}
            found = {timing.name: timing for timing in bench(held, repeats=args.repeats, examples=batch).timings}
            wanted = serve(model, feeds).outputs()[0]
            noise = (f"{sqnr_db(wanted, h.outputs()[0]):.1f}" for h in held.values()) if net.kind != DETECTOR else ()
            one = found["one"]
            times = (f"{1e3 * found[kind].median:.2f}" for kind in held)
            table.add_row(
                name, str(batch), *times, f"{one.speedup:.3f} ({one.low:.2f}-{one.high:.2f})", " -> ".join(noise)
            )
    Console().print(table)


if __name__ == "__main__":
    main()
