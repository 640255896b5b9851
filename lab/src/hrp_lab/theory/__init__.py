"""The theory lab checks every statement of docs/theory.md on matrix factorisation.

``hrp-lab theory check`` runs all statements, ``figure1`` redraws the paper's Figure 1, ``sweep``
shows the final loss against preheat rank and steps, and ``truncation`` the loss right after the cut
to the real rank. The lab needs numpy, scipy and torch; matplotlib only for the figures.
"""
