"""Programs as JAX traces them: walked through, run again in float64, compiled, timed. They know no layer.

replay       a program run again under a change: in float64, without rules, without stops
calls        what an equation calls, in whichever form JAX writes it down
names        names in a program, and which named value each of them came from
taps         values handed out of a program, stacked by its loops
sites        the calls of custom rules in a program, and taps on what reaches them
arguments    a function's arguments as their arrays
program      a function traced once: compiled as it is, and run in float64 by the same trace
once         a program that is run once
clock        two programs timed in turns
"""
