"""Print how well the ends of recorded runs are forecast, and the factor of the interval that they determine.

PYTHONPATH=. python tools/forecast_table.py
"""

import numpy as np

from tests.laws.recorded_curves import CALIBRATION, HELD_OUT, SHARES, conformal_factor


def main() -> None:
    """Print the factor by the runs for calibration, and a Markdown table of the forecasts of the others."""
    print(f"factor by {len(CALIBRATION)} runs: {conformal_factor(CALIBRATION):.2f}\n")
    print(f"{len(HELD_OUT)} other runs:\n")
    print("| after | mean error | median half-width | contain the end | shown | shown and wrong |")
    print("|---|---|---|---|---|---|")
    for share in SHARES:
        print(describe(share))
    num_right = sum(all(forecast.is_right for forecast in curve.forecasts()) for curve in HELD_OUT)
    print(f"\nall intervals contain the end in {num_right} of {len(HELD_OUT)} runs")


def describe(share: float) -> str:
    """Return the row of the forecasts after a share of the run."""
    forecasts = [forecast for curve in HELD_OUT if (forecast := curve.forecast(share))]
    shown = [forecast for forecast in forecasts if forecast.is_shown]
    cells = (
        f"{share:.0%}",
        f"{np.mean([abs(forecast.error) for forecast in forecasts]):.1%}",
        f"{np.median([forecast.half_width for forecast in forecasts]):.1%}",
        f"{sum(forecast.is_right for forecast in forecasts)} of {len(forecasts)}",
        str(len(shown)),
        str(sum(not forecast.is_right for forecast in shown)),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
