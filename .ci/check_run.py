"""Whether a fine-tuning run learned: the held-out loss must fall by at least 10 %."""

import json
import sys
from pathlib import Path

records = [json.loads(line) for line in (Path(sys.argv[1]) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
losses = [record["eval"] for record in records if "eval" in record]
print(f"{sys.argv[1]}: held-out loss {losses[0]:.4f} -> {losses[-1]:.4f}")
if losses[-1] > 0.9 * losses[0]:
    sys.exit("the held-out loss fell by less than 10 %")
