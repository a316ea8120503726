package punch
import "pgregory.net/rapid"
func checkAttempt(t *rapid.T, a *Attempt, p Plan) {}
