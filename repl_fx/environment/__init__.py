"""The machine and the packages around repl-fx, for `repl-fx doctor`; nothing here needs torch, which may be broken."""
