"""How well purifiers denoise photographs, compared with classical denoisers."""
