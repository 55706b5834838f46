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


def write(folder, **results):
    """Write each result to ``NAME.json`` in `folder`; the paths."""
    paths = []
    for name, result in results.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(result))
        paths.append(path)
    return paths
