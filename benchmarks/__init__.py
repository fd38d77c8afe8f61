"""What pyrune costs, always beside something that costs what cannot be avoided.

    python -m benchmarks              measure all and print tables: some minutes
    python -m benchmarks --only boot  one part; see --help
    python -m benchmarks --write      measure all and put the tables into docs/benchmarks.md

A number alone says more about the machine than about pyrune. So each is taken in pairs with a bare counterpart (QEMU
without a runtime, runc, a hash of the same bytes), one after the other in turns, and what counts is the ratio of each
pair: what disturbs the machine for longer than a pair disturbs both. Nothing here passes or fails on a time.

Not part of the package that is installed. It borrows from the tests what builds images and drives the command.
"""
