"""Recorded results as `jscc bench` writes them, with made-up figures."""

import json

MACHINE = {
    "machine": {"cpu": "some processor", "threads": 2},
    "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
    "commit": "0123456789abcdef+",
}


def figures(psnr_db, lpips=None):
    return {"psnr_db": psnr_db, "ms_ssim": 0.9, "lpips": lpips}


def quality(*bundles):
    """A result; each bundle is (name, cbr, {snr: (received, codec or None)}, more)."""
    means = []
    for index, (_, cbr, points) in enumerate(bundles):
        for snr_db, (received, codec) in points.items():
            means.append(
                {
                    "bundle": index,
                    "setting": 0,
                    "rate": None,
                    "snr_db": snr_db,
                    "sampler": None,
                    "steps": None,
                    "ran": "ddim, 4 steps" if codec else "",
                    "rows": 24,
                    "cbr": cbr,
                    "seconds": 1.5,
                    "threads": 1,
                    "received": received,
                    "codec": codec,
                }
            )
    described = [
        {
            "name": name,
            "sha256": f"{index}" * 64,
            "system": "x",
            "variant": "y",
            "parameters": {"transmitter": 1_000_000, "receiver": 2_500_000},
            "settings": [{}],
        }
        for index, (name, *_) in enumerate(bundles)
    ]
    return {
        "kind": "quality",
        "format": 1,
        **MACHINE,
        "channel": "awgn",
        "rows": [],
        "bundles": described,
        "means": means,
    }


def digital(points):
    """A result; points is {(cbr, snr): (figures, share that arrived)}."""
    return {
        "kind": "digital",
        "format": 1,
        **MACHINE,
        "channel": "awgn",
        "rows": [],
        "schemes": [{"name": "hevc-ldpc", "title": "HEVC + LDPC"}],
        "means": [
            {
                "scheme": "hevc-ldpc",
                "cbr": cbr,
                "snr_db": snr_db,
                "rows": 24,
                "budget_bytes": 8192,
                "received": received,
                "decoded": arrived,
            }
            for (cbr, snr_db), (received, arrived) in points.items()
        ],
    }


def systems():
    """Two systems on one codec at cbr 1/96, one of them at 1/48 too."""
    codec = {1.0: figures(22.0, 0.7), 7.0: figures(24.0, 0.6)}
    plain = {snr_db: (figure, None) for snr_db, figure in codec.items()}
    whole = {1.0: (figures(21.0, 0.5), codec[1.0]), 7.0: (figures(23.0, 0.4), codec[7.0])}
    wide = {1.0: (figures(22.5, 0.4), figures(23.5, 0.6)), 7.0: (figures(25.0, 0.3), None)}
    wide[7.0] = (wide[7.0][0], figures(26.0, 0.5))
    return quality(("af-96", 1 / 96, plain), ("sing-96", 0.01043, whole), ("sing-48", 1 / 48, wide))


def baseline():
    """A cliff between 1 and 7 dB."""
    return digital(
        {
            ("1/96", 1.0): (figures(12.0, 1.1), 0.0),
            ("1/96", 4.0): (figures(18.0, 0.8), 0.25),
            ("1/96", 7.0): (figures(25.0, 0.45), 1.0),
            ("1/48", 7.0): (figures(28.0, 0.35), 1.0),
        }
    )


BUNDLE = {"name": "af-96.jscc", "system": "deepjscc", "precision": "fp32", "size_mib": 4.2}
NO_ENERGY = {"joules_per_image": None, "watts": None, "parts": {}, "reason": "energy: no counter"}


def times(middle):
    """Percentiles around `middle`, in ms."""
    return {
        "p50": middle, "p90": 1.2 * middle, "p99": 1.5 * middle,
        "mean": middle, "min": 0.8 * middle, "max": 1.6 * middle,
    }  # fmt: skip


def scenario(kind, **more):
    """A result of one of MLPerf's scenarios."""
    case = {"scenario": kind, "size": [256, 256], "seed": 3, "threads": 1, **more.pop("case", {})}
    return {"kind": kind, "format": 1, **MACHINE, "bundle": BUNDLE, "case": case, **more}


def latency():
    """One image after another, in two stages."""
    stages = {"decode": times(30.0), "render": times(90.0)}
    return scenario(
        "latency",
        latency_ms={"end_to_end": times(120.0), "stages": stages},
        cold_start_ms={"import": 300.0, "total": 900.0},
        memory_mib={"peak": 107.0},
        energy=NO_ENERGY,
    )


def offline():
    """Two batch sizes, two numbers of workers."""
    points = [
        {
            "batch": batch, "workers": workers, "images": 100, "seconds": 10.0,
            "images_per_s": rate, "megapixels_per_s": 0.0655 * rate,
            "efficiency": rate / (workers * 8.0), "batch_ms": times(125.0),
            "peak_rss_mib": 101.0 * workers, "energy": NO_ENERGY,
        }
        for batch, workers, rate in ((1, 1, 8.0), (4, 1, 9.5), (1, 2, 15.0), (4, 2, 17.0))
    ]  # fmt: skip
    return scenario("offline", points=points, case={"duration_s": 10.0})


def server():
    """Three rates, of which the last breaks the bound."""
    points = [
        {
            "rate": rate, "achieved_rate": 0.97 * rate, "images": 200, "load": rate / 8,
            "latency_ms": times(middle), "queue_ms": times(middle / 2), "holds": middle < 300,
        }
        for rate, middle in ((2.0, 130.0), (4.0, 180.0), (7.0, 900.0))
    ]  # fmt: skip
    case = {"bound_ms": 400.0, "workers": 1, "duration_s": 10.0}
    return scenario("server", points=points, case=case, highest_rate=4.0, single_stream_rate=8.0)


def write(folder, **results):
    """Write each result to ``NAME.json`` in `folder`; the paths."""
    paths = []
    for name, result in results.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(result))
        paths.append(path)
    return paths
