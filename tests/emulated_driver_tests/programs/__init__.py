"""The small programs that run under the emulated driver, one function each. They print what they return, as JSON.

Nothing here knows of the emulation. Errors of the driver are returned as their numbers.
"""
