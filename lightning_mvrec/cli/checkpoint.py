"""``mvrec checkpoint``: look at a checkpoint directory, make one plain file of it, or divide it differently."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from lightning_mvrec.strategies.checkpoint_reshard import reshard
from lightning_mvrec.strategies.checkpoint_tools import consolidate, describe


def main(argv: Sequence[str]) -> int:
    """Run ``inspect``, ``consolidate`` or ``reshard`` on a checkpoint directory."""
    parser = ArgumentParser(prog="mvrec checkpoint", description="Look at a checkpoint directory, or convert it.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    look = actions.add_parser("inspect", help="epoch, step, tables, dense weights, size; reads no weights")
    look.add_argument("dir", help="a checkpoint directory")
    look.add_argument("--json", action="store_true", help="the same as JSON")
    merge = actions.add_parser(
        "consolidate",
        help="one plain file, for the unsharded module",
        description='Write the weights into one file: torch.load(OUT, weights_only=True)["state_dict"].',
    )
    merge.add_argument("dir", help="a checkpoint directory")
    merge.add_argument("out", help="the file to write")
    merge.add_argument("--force", action="store_true", help="replace a file that is there")
    divide = actions.add_parser(
        "reshard",
        help="the same directory with its rows in another number of files",
        description="Write a checkpoint directory again, its rows divided evenly over a number of files. No run needs "
        "this to go on on other processes or by another plan.",
    )
    divide.add_argument("dir", help="a checkpoint directory")
    divide.add_argument("out", help="the directory to write")
    divide.add_argument("--files", type=int, default=1, help="number of files (default: 1)")
    arguments = parser.parse_args(argv)
    if arguments.action == "inspect":
        found = describe(arguments.dir)
        print(json.dumps(asdict(found), indent=1) if arguments.json else found)
        return 0
    if arguments.action == "reshard":
        reshard(arguments.dir, arguments.out, arguments.files)
        print(f"{arguments.out}: {arguments.dir} in {arguments.files} file(s)")
        return 0
    left_out = consolidate(arguments.dir, arguments.out, force=arguments.force)
    print(f"{arguments.out}: weights of {arguments.dir}")
    if left_out:
        print(f"left out, since weights_only=True would refuse them: {', '.join(left_out)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
