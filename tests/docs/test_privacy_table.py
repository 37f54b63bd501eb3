"""The table of noise by budget is what its command prints."""

import re
from pathlib import Path

from client.accounting import noise_multiplier_for

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "privacy.md"


def test_noise_of_the_document_is_the_accountants():
    table = PAGE.read_text().partition("privacy table: begin")[2]
    text = table.partition("privacy table: end")[0]
    epsilons = [float(e) for e in re.findall(r"eps = ([0-9.]+)", text)]
    row = re.search(r"^\| 0\.125 \| 100 \| (.*) \|$", text, re.MULTILINE).group(1)
    said = dict(zip(epsilons, row.split(" | "), strict=True))
    for epsilon in (8.0, 200.0):
        noise = noise_multiplier_for(epsilon, 1e-3, sample_rate=0.125, steps=100)
        assert said[epsilon] == f"{noise:.2f} ({noise / (0.125 * 129):.3f})"
