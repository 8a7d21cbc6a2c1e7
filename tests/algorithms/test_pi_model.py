from _given import given, loss, near

from hf_llm_recipes.algorithms.pi_model import PiModel


def test_by_hand():
    algorithm = PiModel()
    guess = algorithm.guess(given([[0.8, 0.2], [0.5, 0.5]]))
    assert guess.weight_U.tolist() == [1, 1]
    # (.6 − .8)² + (.4 − .2)² = .08 and (.6 − .5)² + (.4 − .5)² = .02; their mean is .05
    assert loss(algorithm, guess, [[0.6, 0.4], [0.6, 0.4]]) == near(0.05)


def test_two_passes_of_the_student_with_dropout_over_one_view():
    assert PiModel.teacher == "student"
    assert PiModel.teacher_dropout
    assert not PiModel.strong_view
