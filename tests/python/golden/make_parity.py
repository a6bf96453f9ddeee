"""Record what optimum-quanto 0.2.7 does in every case of `parity`: run this with that version installed.

python make_parity.py
"""

from parity import CASES
from parity.record import RECORDS, run, write


def main() -> None:
    records = {name: run(case) for name, case in CASES.items()}
    write(records)
    errors = sum("error" in record for record in records.values())
    print(f"{len(records)} cases, {errors} of which raise; {RECORDS.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
