"""``python -m hf_llm_recipes``: the command line, for ``torchrun -m hf_llm_recipes run …`` too."""

from hf_llm_recipes.cli import main

if __name__ == "__main__":
    main()
